"""The machine under the page: whether torch is loaded, and how fast it trains."""

import time
from typing import Any

from vggkit.design.memory import machine_memory_bytes

NETWORK, IMAGE_SIZE, BATCH_SIZE = "vgg11/4", 64, 32
"""The training step that is timed."""
MEASURED_STEP = f"{NETWORK}, {IMAGE_SIZE} px, batch {BATCH_SIZE}"


class Machine:
    """Facts that are measured while the page is open."""

    def __init__(self) -> None:
        self.macs_per_second: float | None = None
        """Of a training step, backward pass included; None until it is measured."""
        self.hardware = ""
        self.torch_seconds: float | None = None
        """The time that torch took to load; None until it has."""

    def facts(self) -> dict[str, Any]:
        """What the page shows."""
        return {
            "memory_bytes": machine_memory_bytes(),
            "torch_seconds": self.torch_seconds,
            "macs_per_second": self.macs_per_second,
            "hardware": self.hardware,
        }

    def warm_up(self) -> None:
        """Load torch, then time training steps of a small network."""
        begin = time.perf_counter()
        from vggkit.design.network import as_network, costs
        from vggkit.design.scaling import backward_macs
        from vggkit.engines.accelerate import accelerate
        from vggkit.lab.bench import settled_seconds, trains_by, with_random_images
        from vggkit.training.hardware import choose_device, describe_hardware
        from vggkit.training.recipe import Recipe

        device = choose_device(None)
        self.hardware, self.torch_seconds = describe_hardware(device), time.perf_counter() - begin
        network = as_network(NETWORK, in_channels=1, num_classes=10, image_size=IMAGE_SIZE, hidden=())
        net, x, labels = with_random_images(network, BATCH_SIZE, device)
        seconds = settled_seconds(trains_by(Recipe.named("d2l"), accelerate(net.train()), x, labels), device)
        macs = costs(network, BATCH_SIZE).total.macs + backward_macs(network, BATCH_SIZE)
        self.macs_per_second = macs / seconds
