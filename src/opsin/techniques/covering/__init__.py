"""What happens to the score when parts of the photo are covered."""
