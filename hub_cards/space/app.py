"""The Space: the demo, with the model that the variable DEPTHVLM_MODEL names, or else the bundled nano.

DEPTHVLM_HOSTS names the hosts that it also answers to, such as a domain of its own, with commas between them.
"""

import os

from depthvlm.hub_cards.space.server import launch

if __name__ == "__main__":
    launch(os.environ.get("DEPTHVLM_MODEL") or None, allowed_hosts=os.environ.get("DEPTHVLM_HOSTS", "").split(","))
