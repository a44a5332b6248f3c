"""What a plan costs and saves in seconds and bytes."""
