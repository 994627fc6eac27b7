"""Nobody imports a framework that is not used; one that is missing is named."""

import subprocess
import sys

PROGRAM = """
import sys
import sam_repro.integrations.lightning, sam_repro.optim
assert not {"transformers", "pytorch_lightning", "lightning", "accelerate", "hydra"} & sys.modules.keys()
sys.modules["transformers"] = sys.modules["accelerate"] = None
for name in ("huggingface", "accelerate"):
    try:
        __import__(f"sam_repro.integrations.{name}")
    except ImportError as error:
        print(error)
"""


def test_frameworks_are_optional():
    said = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True).stdout.splitlines()
    assert said == [
        "Hugging Face's Trainer is not installed: pip install 'sam-repro[hf]'.",
        "Accelerate is not installed: pip install 'sam-repro[accelerate]'.",
    ]
