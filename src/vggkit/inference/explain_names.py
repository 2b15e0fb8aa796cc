"""The names of the methods of `explain`. Imports no torch."""

from typing import Literal

Method = Literal[
    "grad-cam", "layer-cam", "saliency", "smoothgrad", "integrated-gradients", "occlusion", "lrp", "guided-backprop"
]
"""`guided-backprop` mostly shows the edges of the image, whatever the network has learned (Adebayo et al., arXiv
1810.03292)."""
OF_LAYERS = ("grad-cam", "layer-cam")
"""Methods that take a layer."""
SIGNED = ("integrated-gradients", "occlusion", "lrp")
"""Methods whose maps are negative where the image speaks against the class."""
