"""Draw pictures: python infer.py "bird on a tree"."""

import sys

from ar_t2i.cli import main

if __name__ == "__main__":
    sys.exit(main(["infer", *sys.argv[1:]]))
