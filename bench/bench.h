/* SPDX-License-Identifier: MIT */
/*
 * bench.h - samples, their median and p99, and rows of results.
 *
 * A benchmark program prints one JSON object, {"host":{...},"rows":[...]}; the
 * script beside it merges what its runs printed and shows the table.
 */
#ifndef BENCH_H
#define BENCH_H

#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#define SAMPLES_MAX 4096

struct samples {
	unsigned int n;
	double	v[SAMPLES_MAX];
};

static inline double now_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec * 1e6 + (double)ts.tv_nsec / 1e3;
}

static inline void sample(struct samples *s, double v)
{
	if (s->n < SAMPLES_MAX)
		s->v[s->n++] = v;
}

static int sample_order(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

/* The p-th percentile, 0 to 100; 0 if there are no samples. */
static inline double percentile(struct samples *s, double p)
{
	if (!s->n)
		return 0;
	qsort(s->v, s->n, sizeof(s->v[0]), sample_order);
	return s->v[(unsigned int)((double)(s->n - 1) * p / 100.0 + 0.5)];
}

/* Add a row; what it is compared with, ref, may be NULL. */
static inline void row(struct json_object *rows, const char *name, const char *unit,
		       struct samples *s, const char *reference, struct samples *ref)
{
	struct json_object *o = json_object_new_object();
	double median = percentile(s, 50);

	json_object_object_add(o, "name", json_object_new_string(name));
	json_object_object_add(o, "unit", json_object_new_string(unit));
	json_object_object_add(o, "n", json_object_new_int64(s->n));
	json_object_object_add(o, "median", json_object_new_double(median));
	json_object_object_add(o, "p99", json_object_new_double(percentile(s, 99)));
	if (ref && ref->n) {
		double r = percentile(ref, 50);

		json_object_object_add(o, "reference", json_object_new_string(reference));
		json_object_object_add(o, "reference_median", json_object_new_double(r));
		json_object_object_add(o, "ratio", json_object_new_double(r > 0 ? median / r : 0));
	}
	json_object_array_add(rows, o);
}

/* Where this ran. */
static inline struct json_object *host_info(void)
{
	struct json_object *o = json_object_new_object();
	struct utsname u;

	uname(&u);
	json_object_object_add(o, "kernel", json_object_new_string(u.release));
	json_object_object_add(o, "machine", json_object_new_string(u.machine));
	json_object_object_add(o, "cpus", json_object_new_int64(sysconf(_SC_NPROCESSORS_ONLN)));
	return o;
}

static inline void print_results(struct json_object *host, struct json_object *rows)
{
	struct json_object *top = json_object_new_object();

	json_object_object_add(top, "host", host);
	json_object_object_add(top, "rows", rows);
	printf("%s\n", json_object_to_json_string_ext(top, JSON_C_TO_STRING_PRETTY));
	json_object_put(top);
}

#endif
