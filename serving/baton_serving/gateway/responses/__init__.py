"""`/v1/responses` as an adapter over chat completions: nothing is kept between two requests."""
