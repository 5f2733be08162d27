"""Everything that touches vLLM. The only package of the product that imports it."""
