"""What training and service share: folders of clips, rating records, pairs, and metrics of clips."""
