"""What is measured, how, and the results: each command writes one JSON file of results/."""
