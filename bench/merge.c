/* SPDX-License-Identifier: MIT */
/*
 * merge.c - put what several runs printed into one file, and show the table.
 *
 *	merge OUT.json RUN.json...
 *
 * "host" is that of the last run.  Every row says which run's kernel it comes
 * from.
 */
#include <err.h>
#include <json-c/json.h>
#include <stdio.h>

static const char *text(struct json_object *o, const char *key)
{
	struct json_object *v;

	return json_object_object_get_ex(o, key, &v) ? json_object_get_string(v) : "";
}

static void show(struct json_object *row)
{
	struct json_object *v;

	printf("%-34s %-6s %4s %14.1f %14.1f", text(row, "name"), text(row, "unit"), text(row, "n"),
	       json_object_get_double(json_object_object_get(row, "median")),
	       json_object_get_double(json_object_object_get(row, "p99")));
	if (json_object_object_get_ex(row, "ratio", &v))
		printf(" %14.1f %7.3f  %s",
		       json_object_get_double(json_object_object_get(row, "reference_median")),
		       json_object_get_double(v), text(row, "reference"));
	printf("\n");
}

int main(int argc, char **argv)
{
	struct json_object *all = json_object_new_object(), *rows = json_object_new_array();
	size_t i;
	int a;

	if (argc < 3)
		errx(2, "usage: merge OUT RUN...");
	printf("%-34s %-6s %4s %14s %14s %14s %7s\n", "row", "unit", "n", "median", "p99",
	       "reference", "ratio");
	for (a = 2; a < argc; a++) {
		struct json_object *run = json_object_from_file(argv[a]), *host, *list;

		if (!run || !json_object_object_get_ex(run, "host", &host) ||
		    !json_object_object_get_ex(run, "rows", &list))
			errx(1, "%s: no results", argv[a]);
		printf("-- %s\n", text(host, "kernel"));
		json_object_object_add(all, "host", json_object_get(host));
		for (i = 0; i < json_object_array_length(list); i++) {
			struct json_object *row = json_object_array_get_idx(list, i);

			json_object_object_add(row, "kernel", json_object_new_string(text(host, "kernel")));
			json_object_array_add(rows, json_object_get(row));
			show(row);
		}
	}
	json_object_object_add(all, "rows", rows);
	if (json_object_to_file_ext(argv[1], all, JSON_C_TO_STRING_PRETTY) < 0)
		err(1, "%s", argv[1]);
	return 0;
}
