/* SPDX-License-Identifier: MIT */
/*
 * stream.c - what bench/io.c runs in the guest for the rows net.* and vsock.*.
 *
 *	stream ROW ADDRESS echo COUNT	so many round trips of 64 bytes
 *	stream ROW ADDRESS bulk MIB	so many MiB out, then as many in
 *
 * ADDRESS is vsock, or an IPv4 address; bench/io.c answers there, on STREAM_PORT.
 * Prints "stream ROW VALUE REQUESTS": round trips per second and how many, or MB/s
 * and pieces of 64 KiB.
 */
#include <arpa/inet.h>
#include <err.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

#include "stream.h"

static int call(const char *where)
{
	struct sockaddr_vm vm = { .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST,
				  .svm_port = STREAM_PORT };
	struct sockaddr_in in = { .sin_family = AF_INET, .sin_port = htons(STREAM_PORT) };
	int vsock = strcmp(where, "vsock") == 0, one = 1;
	int fd = socket(vsock ? AF_VSOCK : AF_INET, SOCK_STREAM, 0);

	if (!vsock && inet_pton(AF_INET, where, &in.sin_addr) != 1)
		errx(2, "no address: %s", where);
	if (fd < 0 || (vsock ? connect(fd, (struct sockaddr *)&vm, sizeof(vm)) :
			       connect(fd, (struct sockaddr *)&in, sizeof(in))) < 0)
		err(1, "connect to %s", where);
	if (!vsock)
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	return fd;
}

static void mark(const char *row)
{
	char command[100];

	snprintf(command, sizeof(command), "/mnt/mark %s", row);
	if (system(command))
		errx(1, "%s", command);
}

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
	struct stream_ask ask = { STREAM_ECHO, 0 };
	double start, value, requests;
	uint64_t i, n;
	int fd;

	if (argc != 5)
		errx(2, "usage: see stream.c");
	n = strtoull(argv[4], NULL, 10);
	if (strcmp(argv[3], "bulk") == 0)
		ask = (struct stream_ask){ STREAM_BULK, n << 20 };
	fd = call(argv[2]);
	mark(argv[1]);
	start = now();
	stream_write(fd, &ask, sizeof(ask));
	if (ask.op == STREAM_BULK) {
		stream_write(fd, NULL, ask.bytes);
		stream_read(fd, NULL, ask.bytes);
		requests = (double)(2 * ask.bytes / STREAM_PIECE);
		value = (double)(2 * ask.bytes) / 1e6 / (now() - start);
	} else {
		for (i = 0; i < n; i++) {
			stream_write(fd, NULL, STREAM_SMALL);
			stream_read(fd, NULL, STREAM_SMALL);
		}
		requests = (double)n;
		value = requests / (now() - start);
	}
	mark("end");
	printf("stream %s %f %f\n", argv[1], value, requests);
	return 0;
}
