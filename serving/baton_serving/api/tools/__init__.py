"""Tool calls in a model's text: one parser per spelling, and what a response says of the calls found."""
