/* SPDX-License-Identifier: MIT */
/*
 * bench.h - samples, their median and p99, rows of results, and other programs' time.
 *
 * A benchmark program prints one JSON object, {"host":{...},"rows":[...]}; the
 * script beside it merges what its runs printed and shows the table.
 */
#ifndef BENCH_H
#define BENCH_H

#include <err.h>
#include <json-c/json.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <sys/wait.h>
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

/* A row of one value. */
static inline void row_value(struct json_object *rows, const char *name, const char *unit, double v,
			     const char *reference, double ref)
{
	static struct samples a, b;

	a.n = b.n = 0;
	sample(&a, v);
	sample(&b, ref);
	row(rows, name, unit, &a, reference, reference ? &b : NULL);
}

static inline double size_of(const char *path)
{
	struct stat st;

	if (stat(path, &st))
		err(1, "%s", path);
	return (double)st.st_size;
}

/* How long a command of the shell takes. */
static inline double run(const char *command)
{
	const char *argv[] = { "sh", "-c", command, NULL };
	double t = now_us();
	pid_t pid;
	int status;

	if (posix_spawnp(&pid, "sh", NULL, NULL, (char **)(uintptr_t)argv, environ))
		errx(1, "cannot run %s", command);
	if (waitpid(pid, &status, 0) != pid || status)
		errx(1, "failed: %s", command);
	return now_us() - t;
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
