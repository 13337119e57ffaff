"""Quality: how far a quantized model's predictions are from those of the weights it was made from.

``definition`` has the figures of one position, ``figures`` those of a text set with their intervals, ``kept`` the
reference on disk, and ``texts`` the text set. No module here imports torch: a backend gives the logits.
"""
