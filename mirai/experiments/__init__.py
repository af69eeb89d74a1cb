"""What is to be run, as plain values: recipes, scales, grids, keys, the state tree, paths. Nothing here imports torch."""
