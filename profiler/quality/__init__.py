"""Quality: how far a quantized model's predictions are from those of the weights it was made from.

``definition`` has the figures of one position, ``references`` the references on disk, ``texts`` the text set, and
``published`` what others measured.
The figures of a whole text set, with their intervals, follow from stored rows and are in ``results/quality.py``. No
module here imports torch: a backend gives the logits.
"""
