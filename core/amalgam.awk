# SPDX-License-Identifier: MIT
#
# amalgam.awk - all of the library in one file, for "make amalgam".
#
#	awk -f core/amalgam.awk core/*.c ... vmm.c > dist/vmm.c
#
# Each private header is put in where it is first included; what it declares
# becomes static, and so the definitions that follow do, too.  vmm.h stays an
# #include.  File names and file-local names are unique in the library, which
# is what makes this possible; the compiler would tell.

function base(path)
{
	sub(/.*\//, "", path)
	return path
}

function emit(file, private,    line, name)
{
	while ((getline line < file) > 0) {
		if (line ~ /^#include "/) {
			name = line
			sub(/^#include "/, "", name)
			sub(/".*/, "", name)
			include(file, name)
			continue
		}
		# A prototype: a type at the margin, and a parenthesis.
		if (private && line ~ /^[a-z].*\(/ && line !~ /^(static|typedef|extern|enum)/)
			line = "VMM_PRIVATE " line
		print line
	}
	close(file)
}

function include(from, name,    dir)
{
	if (base(name) == "vmm.h") {
		if (!done["vmm.h"]++)
			print "#include \"vmm.h\""
		return
	}
	if (done[base(name)]++)
		return
	dir = from
	sub(/[^\/]*$/, "", dir)
	print "/* ---- " base(name) " ---- */"
	emit(dir name, 1)
}

BEGIN {
	print "/* SPDX-License-Identifier: MIT */"
	print "/* The vmm library " version ", amalgamated.  Edit the originals. */"
	print "#ifndef _GNU_SOURCE"
	print "#define _GNU_SOURCE"
	print "#endif"
	print "/* Some of what is private is there for the tests alone. */"
	print "#define VMM_PRIVATE static __attribute__((unused))"
	for (i = 1; i < ARGC; i++) {
		if (ARGV[i] ~ /=/)
			continue
		print "/* ---- " ARGV[i] " ---- */"
		emit(ARGV[i], 0)
	}
	exit 0
}
