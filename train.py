"""Train the decoder: accelerate launch train.py --config configs/scenes.yaml [--resume] [key=value ...]."""

import sys

from ar_t2i.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
