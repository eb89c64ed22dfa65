"""Who is better: candidates to rate, ratings, the judge, the paper's table and the gate of what ships."""
