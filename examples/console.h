/* SPDX-License-Identifier: MIT */
/*
 * console.h - for the examples: talk to a guest's shell through a socket pair.
 */
#ifndef CONSOLE_H
#define CONSOLE_H

#include <ctype.h>
#include <err.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static inline double now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec * 1e3 + (double)ts.tv_nsec / 1e6;
}

/* Copy the console to standard output until it shows text (NULL: until it ends).
   0 if it ended before.  Escape sequences, such as the shell's question where the
   cursor is, are not for our terminal. */
static inline int wait_for(int console, const char *text)
{
	char seen[512] = "", c;
	size_t n = 0;

	while (read(console, &c, 1) == 1) {
		if (c == '\033') {
			while (read(console, &c, 1) == 1 && !isalpha((unsigned char)c))
				;
			continue;
		}
		putchar(c);
		fflush(stdout);
		if (n == sizeof(seen) - 1) {
			memmove(seen, seen + 256, n - 256);
			n -= 256;
		}
		seen[n++] = c;
		seen[n] = 0;
		if (text && n >= strlen(text) && strcmp(seen + n - strlen(text), text) == 0)
			return 1;
	}
	return 0;
}

static inline void type(int console, const char *line)
{
	if (write(console, line, strlen(line)) < 0 || write(console, "\n", 1) < 0)
		err(1, "console");
}

/* Type a line, and show what comes up to the next prompt. */
static inline void command(int console, const char *line)
{
	type(console, line);
	if (!wait_for(console, "\n") || !wait_for(console, "# "))
		errx(1, "no answer");
}

#endif
