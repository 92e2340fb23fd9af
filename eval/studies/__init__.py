"""Studies: many trainings that differ in one thing, evaluated alike and compared with paired intervals."""
