"""Data: image sets, ADM's crop and its views, the code store, and the order of training. No torch below here."""
