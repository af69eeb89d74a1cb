"""Drawing images from a trained model. Like the models, it knows nothing of foresight: inference costs what it did."""
