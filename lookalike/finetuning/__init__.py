"""Training the last layers of a network so that images of one class come to lie together: the stage `finetune`."""
