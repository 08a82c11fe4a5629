"""Two processes of accelerate: the real trainers, and a loop of one's own."""

import os
import socket
import warnings

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from torch.utils.data import DataLoader

from cusa.data.store.joined import join
from cusa.train.teacher_rows import Teachers, collate_joined
from tests.hosts.trainers import hugging_face, make_inputs, sentence_transformers


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("data"))


def _free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _in_rank(rank, port, function, *arguments):
    """Run a function in a copy of this process, as ``accelerate launch`` would launch it."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    # sentence-transformers passes DDP an argument that torch renames.
    warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
    torch.set_num_threads(1)
    group = {"RANK": rank, "LOCAL_RANK": rank, "MASTER_PORT": port}
    group |= {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ.update({name: str(value) for name, value in group.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="lo", ACCELERATE_USE_CPU="true")
    function(rank, *arguments)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    # At times a thread of gloo's outlives DDP's reducer, and the interpreter's own exit aborts.
    os._exit(0)


def _in_two_processes(function, *arguments):
    # A new interpreter would import the libraries first, for seconds.
    mp.start_processes(
        _in_rank, (_free_port(), function, *arguments), nprocs=2, start_method="fork"
    )


HOSTS = [hugging_face, sentence_transformers]


def _train(rank, host, inputs, folder):
    """Train four steps, then two, and two more from their checkpoint."""

    def trainer_of(name, steps):
        batch_sizes = {"per_device_train_batch_size": 8, "per_device_eval_batch_size": 8}
        return host(inputs, folder / name, steps, gather=True, **batch_sizes)

    whole, whole_model = trainer_of("whole", 4)
    whole.train()
    trainer_of("halves", 2)[0].train()
    resumed, resumed_model = trainer_of("halves", 4)
    resumed.train(resume_from_checkpoint=str(folder / "halves" / "checkpoint-2"))
    results = {
        "whole": whole_model.state_dict(),
        "resumed": resumed_model.state_dict(),
        "log": whole.state.log_history,
        "evaluated": [whole.evaluate()["eval_loss"], resumed.evaluate()["eval_loss"]],
    }
    torch.save(results, folder / f"{rank}.pt")


@pytest.fixture(scope="module", params=HOSTS)
def host(request):
    return request.param


@pytest.fixture(scope="module")
def ranks(host, inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    _in_two_processes(_train, host, inputs, folder)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_two_processes_train_as_one_does_with_their_batches_joined(ranks, host, inputs, tmp_path):
    trainer, model = host(inputs, tmp_path, 4)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    logged_by_ranks = [entry for entry in ranks[0]["log"] if "loss" in entry]
    assert len(logged) == len(logged_by_ranks) == 4
    for alone, together in zip(logged, logged_by_ranks, strict=True):
        assert float(together["loss"]) == pytest.approx(float(alone["loss"]), rel=1e-4)
        assert float(together["grad_norm"]) == pytest.approx(float(alone["grad_norm"]), rel=1e-3)
    state = model.state_dict()
    for name, value in ranks[0]["whole"].items():
        # The trainer of sentence-transformers leaves DDP's wrapper in the loss.
        name = name.replace(".module.", ".")
        # Attention's key biases have rounding errors for gradients, which AdamW scales up.
        if "k_proj.bias" not in name:
            torch.testing.assert_close(value, state[name], rtol=1e-3, atol=1e-5)
    assert ranks[0]["evaluated"][0] == pytest.approx(trainer.evaluate()["eval_loss"], rel=1e-4)


def test_two_processes_resume_bit_for_bit(ranks):
    for rank in ranks:
        assert rank["evaluated"][0] == rank["evaluated"][1]
        for name, value in rank["whole"].items():
            assert torch.equal(value, rank["resumed"][name]), name


def test_the_ranks_hold_the_same_temperatures(ranks):
    first, second = (rank["whole"] for rank in ranks)
    temperatures = [name for name in first if "tau" in name]
    assert temperatures
    for name in temperatures:
        assert torch.equal(first[name], second[name]), name


def _join(rank, inputs, folder):
    from accelerate import Accelerator, DataLoaderConfiguration

    split = inputs.store.split("train")
    ids = list(split.caption_ids)
    numbers = [(torch.tensor(number), {"number": number}) for number in range(len(ids))]
    joined = join(numbers, split, caption_ids=ids)
    teachers = Teachers(inputs.store, "train")
    for kind, settings in JOINED.items():
        accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(**settings))
        loader = accelerator.prepare(
            DataLoader(joined, 16, shuffle=True, collate_fn=collate_joined)
        )
        passed = []
        for (number, extra), caption_rows in loader:
            assert torch.equal(number, extra["number"])
            batch = teachers.rows(caption_rows, accelerator.device)
            assert len(batch.image_ids) == len(number)
            passed.append(torch.stack([number, caption_rows], dim=1))
        np.save(folder / f"{kind}-{rank}.npy", torch.cat(passed).numpy())
        accelerator.free_memory()


# How accelerate deals a batch out: whole batches in turn, shares of each, or by the first process.
JOINED = {
    "in turn": {},
    "split": {"split_batches": True},
    "dispatched": {"dispatch_batches": True},
}


def test_rows_stay_with_their_items(inputs, tmp_path):
    _in_two_processes(_join, inputs, tmp_path)
    n_captions = inputs.store.split("train").n_captions
    for kind in JOINED:
        passed = np.concatenate([np.load(tmp_path / f"{kind}-{rank}.npy") for rank in range(2)])
        assert np.array_equal(passed[:, 0], passed[:, 1]), kind
        assert sorted(passed[:, 0]) == list(range(n_captions)), kind
