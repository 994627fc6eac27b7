"""A folder of images, as a user has one: scans/{train,val}/<digit>/<n>.png, 900 of scikit-learn's handwritten digits."""

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

digits = load_digits()
for label in range(10):
    for number, pixels in enumerate(digits.images[digits.target == label][:90]):
        path = Path("scans") / ("train" if number < 60 else "val") / str(label) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 255 / 16).astype(np.uint8)).save(path)
