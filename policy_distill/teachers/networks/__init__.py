"""The networks of a trained agent, rebuilt from plain weights or copied from a live model."""
