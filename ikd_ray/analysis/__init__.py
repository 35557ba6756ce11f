"""Analysis of a sweep's records: Pareto front, choice of students, means with intervals, comparisons."""
