"""How each family of formats becomes pieces of text; one file each, always run inside the limited child."""
