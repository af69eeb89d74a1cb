"""What is looked at in the end: tables, pictures of samples and token maps. Arrays and numbers in, files out."""
