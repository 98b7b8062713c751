"""DepthVLM: dense metric depth inside a vision-language model."""
