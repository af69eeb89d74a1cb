"""The five ADM metrics of a sample set, the features behind them, and exact coherence measures for scenes."""
