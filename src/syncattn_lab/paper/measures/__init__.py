"""What the sections measure with: published forms, counts, statistics, constructions."""
