"""Models of one modality with pretrained weights: teachers of stage one, and towers of students."""
