"""The gathered loss: real processes over gloo against one process on the concatenated batch."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cusa.data.errors import EmbeddingsError
from cusa.train.loss.balance import balanced_config
from cusa.train.loss.batch import Candidates
from cusa.train.loss.config import LossConfig, Temperature, TemperaturePair
from cusa.train.loss.cusa_loss import CUSALoss
from cusa.train.loss.features import FeatureDims
from cusa.train.loss.rules.settings import GuideConfig, HycdConfig
from cusa.train.teacher_queue import TeacherQueue

SIZES = {2: (5, 9), 3: (4, 1, 7)}
_LEARNED = TemperaturePair(Temperature(0.7, 0.1, 1.0), Temperature(0.5, 0.1, 1.0), False)
CASES = {
    "paper": (LossConfig(), True),
    "all different": (LossConfig(contrastive_scaling="infonce"), False),
    "learned soft labels, dot": (LossConfig(soft_label_source="dot", tau_soft=_LEARNED), True),
    "contrastive alone": (LossConfig(terms=("contrastive",)), True),
    "several teachers, two labels": (LossConfig(tau_soft=_LEARNED, top_k=2), True),
    "cross-modal teacher": (LossConfig(soft_label_source="cross", tau_soft=_LEARNED), True),
    "hycd": (LossConfig(rule="hycd", hycd=HycdConfig(0.3, 2)), True),
    "guide": (LossConfig(rule="guide", guide=GuideConfig("either", 0.8)), True),
}
for _rule in ("cwcl", "features", "xclr", "dr", "dr-sigmoid", "self-guide"):
    CASES[_rule] = (LossConfig(rule=_rule, terms=("contrastive",)), True)


class Student(nn.Module):
    """Four heads on shared inputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.heads = nn.ModuleList(nn.Linear(8, 6, dtype=torch.float64) for _ in range(4))

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> list[torch.Tensor]:
        v, t, uni_v, uni_t = self.heads
        return [v(image), t(text), uni_v(image), uni_t(text)]


def _batch(n: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    rows = [torch.randn(n, d, generator=rng, dtype=torch.float64) for d in (8, 8, 5, 4, 3, 3, 3)]
    return rows, torch.randint(0, n // 2, (n,), generator=rng)


def _gradients(
    config: LossConfig, with_ids: bool, method: str, rows: slice, n: int, gather: bool
) -> dict[str, torch.Tensor]:
    """Loss and gradients of some rows of the batch, in DDP where there are several ranks."""
    (image, text, *teachers), ids = _batch(n)
    a, b, other_b, c, d = (t[rows] for t in teachers)
    student: nn.Module = Student()
    # DDP waits for the gradient of every parameter: the heads that no term uses get none.
    in_ddp = gather and "usa" in config.terms
    if in_ddp:
        student = DistributedDataParallel(student)
    torch.manual_seed(3)
    dims = FeatureDims(6, 5, 7)
    loss = CUSALoss(config, method=method, tile_rows=3, gather=gather, feature_dims=dims).double()
    features = student(image[rows], text[rows])
    for x in features:
        x.retain_grad()
    kept_ids = ids[rows] if with_ids else None
    terms = loss(*features, a, [b, other_b], kept_ids, cross_teachers=[(c, d)])
    terms.total.backward()
    results = {f"term {name}": value.detach() for name, value in terms._asdict().items()}
    results |= {f"feature {i}": x.grad for i, x in enumerate(features) if x.grad is not None}
    results |= {f"tau {name}": p.grad for name, p in loss.named_parameters()}
    if gather and not in_ddp:
        return results
    weights = student.module if in_ddp else student
    results |= {
        f"weight {name}": p.grad for name, p in weights.named_parameters() if p.grad is not None
    }
    return results


def _rank(rank: int, sizes: tuple[int, ...], folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=len(sizes)
    )
    rows = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    for number, (config, with_ids) in enumerate(CASES.values()):
        for method in ("dense", "tiled"):
            results = _gradients(config, with_ids, method, rows, sum(sizes), gather=True)
            torch.save(results, folder / f"{number}-{method}-{rank}.pt")
    errors = []
    x = torch.randn(4, 3)
    loss = CUSALoss(gather=True)
    teacher = x.clone()
    if rank == 1:
        teacher[2] = 0
    faulty = rank == 1
    integers = x.numpy().astype("i4" if faulty else "f4")
    batches = [  # what is wrong with them is wrong on rank 1 alone
        (x, x, x, x, teacher, x, None),  # a row of zeros
        (x, x, x, x, x, x, torch.arange(4) if rank else None),  # ids
        (x, x, x, x, None if faulty else x, x, None),  # no teacher
        (x.double() if faulty else x, x, x, x, x, x, None),  # another dtype
        (x.clone().requires_grad_(faulty), x, x, x, x, x, None),  # a gradient wanted
        (x, x, x, x, integers, x, None),  # an array of integers
        (x, x, x, x, x, x, None, Candidates(x, x, x, x) if faulty else None),  # a queue
    ]
    for batch in batches:
        with pytest.raises(EmbeddingsError) as error:
            loss(*batch)
        errors.append((error.value.name, error.value.location))
    torch.save(errors, folder / f"errors-{rank}.pt")
    weight = torch.tensor(2.0, requires_grad=True)
    balanced = balanced_config(LossConfig(), [((rank + 1) * weight, weight)], [weight], 1)
    torch.save(balanced.alpha, folder / f"alpha-{rank}.pt")
    queue = TeacherQueue(sum(sizes) + 2)
    own_queue = TeacherQueue(sum(sizes), gather=False)
    for first_row in (0, 100):
        batch = torch.arange(sum(sizes))[rows] + first_row
        queue.enqueue(batch)
        own_queue.enqueue(batch)
    torch.save((queue.state_dict(), own_queue.state_dict()), folder / f"queue-{rank}.pt")
    dist.barrier()  # a rank that takes its connections down early can abort the others
    dist.destroy_process_group()
    # At times a thread of gloo's outlives DDP's reducer, and the interpreter's own exit aborts.
    os._exit(0)


@pytest.fixture(scope="module", params=[2, 3], ids="{} processes".format)
def gathered(request, tmp_path_factory):
    sizes = SIZES[request.param]
    folder = tmp_path_factory.mktemp("gathered")
    # A new interpreter would import the libraries first, for seconds.
    mp.start_processes(_rank, (sizes, folder), nprocs=len(sizes), start_method="fork")
    return sizes, folder


@pytest.mark.parametrize("method", ["dense", "tiled"])
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_are_those_of_one_process(gathered, case, method):
    sizes, folder = gathered
    n, w = sum(sizes), len(sizes)
    config, with_ids = CASES[case]
    want = _gradients(config, with_ids, "dense", slice(0, n), n, gather=False)
    ranks = [
        torch.load(folder / f"{list(CASES).index(case)}-{method}-{rank}.pt") for rank in range(w)
    ]
    for rank, got in enumerate(ranks):
        assert {key for key in want if "weight" not in key} <= got.keys()
        for key in got:
            value = want[key]
            if key.startswith("feature"):  # times the number of ranks, which DDP divides by
                value = w * value[sum(sizes[:rank]) : sum(sizes[: rank + 1])]
            torch.testing.assert_close(
                got[key], value, rtol=1e-9, atol=1e-12, msg=lambda m, key=key: f"{key}: {m}"
            )


def test_no_rank_waits_for_one_that_stops(gathered):
    sizes, folder = gathered
    errors = [torch.load(folder / f"errors-{rank}.pt") for rank in range(len(sizes))]
    for rank, of_batches in enumerate(errors):
        zeros, ids, missing, dtype, gradient, integers, queue = of_batches
        if rank == 1:
            assert zeros == ("teacher_image", "rows 2")
            assert integers == ("teacher_image", "")
            assert queue == ("candidates", "")
        else:
            assert zeros == integers == queue == ("", "rank 1")
        assert ids == missing == dtype == gradient == ("", "rank 1")


def test_a_queue_of_rows_takes_the_pairs_of_all_ranks(gathered):
    sizes, folder = gathered
    n_pairs = sum(sizes)
    expected = TeacherQueue(n_pairs + 2)
    expected.enqueue(range(n_pairs))
    expected.enqueue(range(100, 100 + n_pairs))
    for rank, size in enumerate(sizes):
        queue, own_queue = torch.load(folder / f"queue-{rank}.pt")
        torch.testing.assert_close(queue, dict(expected.state_dict()))
        assert own_queue["next_slot"].item() == 2 * size % n_pairs


def test_every_rank_gets_the_same_balanced_weights(gathered):
    sizes, folder = gathered
    mean_norm = sum(range(1, len(sizes) + 1)) / len(sizes)
    for rank in range(len(sizes)):
        alpha = torch.load(folder / f"alpha-{rank}.pt")
        assert alpha == pytest.approx(mean_norm * LossConfig().alpha)


def test_one_process_alone_gathers_nothing():
    x = torch.randn(6, 4)
    torch.testing.assert_close(
        CUSALoss(gather=True)(x, x, x, x, x, x), CUSALoss()(x, x, x, x, x, x)
    )
