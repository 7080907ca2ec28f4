"""Neural networks that keep answering when their memory and their processor are taken away."""
