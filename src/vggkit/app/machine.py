"""This machine as the page knows it: whether torch is loaded, and how fast it trains."""

import time
from typing import Any

from vggkit.app import designs
from vggkit.design.memory import machine_memory_bytes

MEASURED = "vgg11/4"
"""The network whose training step is timed, at `MEASURED_SIZE` pixels in batches of `MEASURED_BATCH`."""
MEASURED_SIZE, MEASURED_BATCH = 64, 32


class Machine:
    """What is found out about the machine while the page is open."""

    def __init__(self) -> None:
        self.rate: float | None = None
        """MACs that a training step does in a second, measured here once torch is loaded."""
        self.hardware = ""
        self.torch_seconds: float | None = None
        """How long torch took to load."""

    def facts(self) -> dict[str, Any]:
        """For the page."""
        return {
            "memory_bytes": machine_memory_bytes(),
            "torch_seconds": self.torch_seconds,
            "macs_per_second": self.rate,
            "measured": f"{MEASURED}, {MEASURED_SIZE} px, batch {MEASURED_BATCH}",
            "hardware": self.hardware,
        }

    def limits(self, asked: dict[str, Any]) -> dict[str, Any]:
        """See `designs.limits`."""
        return designs.limits(asked, self.rate) | {"measured": self.facts()["measured"]}

    def warm_up(self) -> None:
        """Load torch, then time training steps of a small network, as `vgg train` takes them."""
        begin = time.perf_counter()
        from vggkit.design.network import as_network, costs
        from vggkit.design.scaling import backward_macs
        from vggkit.engines.accelerate import accelerate
        from vggkit.lab.bench import settled_seconds, trains_by, with_random_images
        from vggkit.training.hardware import choose_device, describe_hardware
        from vggkit.training.recipe import Recipe

        device = choose_device(None)
        self.hardware, self.torch_seconds = describe_hardware(device), time.perf_counter() - begin
        network = as_network(MEASURED, in_channels=1, num_classes=10, image_size=MEASURED_SIZE, hidden=())
        net, x, labels = with_random_images(network, MEASURED_BATCH, device)
        seconds = settled_seconds(trains_by(Recipe.named("d2l"), accelerate(net.train()), x, labels), device)
        macs = costs(network, MEASURED_BATCH).total.macs + backward_macs(network, MEASURED_BATCH)
        self.rate = macs / seconds
