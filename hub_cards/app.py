"""The Space: the demo, with the model that the variable DEPTHVLM_MODEL names, or else the bundled nano."""

import os

from depthvlm.hub_cards.demo_server import launch

if __name__ == "__main__":
    launch(os.environ.get("DEPTHVLM_MODEL") or None)
