"""Published generators: their weights under our names, and the settings they were made with.

sizes           sizes, and the tensors of a file of each layout
reading         what a file says: its layout, its sizes
models          sizes as settings of ours
llamagen, var   their tensors under our names
published       a checkpoint as a run, whole or not at all
"""
