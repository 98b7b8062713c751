"""DepthVLM behind vLLM: the plugin, its model classes, and the processor of requests for depth."""
