"""What runs, as a terminal, TensorBoard, Weights & Biases or MLflow show it."""
