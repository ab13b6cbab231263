"""What `train_small.py` is made of: texts, families of models, routing, the scan of Mamba."""
