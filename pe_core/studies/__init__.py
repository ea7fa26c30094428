"""Studies: `measure` makes a study's numbers, `report` its sentences, tables and figures. None knows another."""
