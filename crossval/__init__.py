"""The only place that sees both sides: cases, comparison, localisation, attribution."""
