// SPDX-License-Identifier: MIT

package vmm

// #include "shim.h"
import "C"

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"unsafe"
)

// LogLevel is how much a line of a log matters.
type LogLevel int

// Levels, the most important first.
const (
	LogError LogLevel = C.VMM_LOG_ERROR
	LogWarn  LogLevel = C.VMM_LOG_WARN
	LogInfo  LogLevel = C.VMM_LOG_INFO
	LogDebug LogLevel = C.VMM_LOG_DEBUG
)

// String gives the level as log/slog does.
func (l LogLevel) String() string { return l.slog().String() }

func (l LogLevel) slog() slog.Level { return slog.LevelError - 4*slog.Level(l) }

// LogFunc is called with each line of a machine's log, in order, on one goroutine.
// It comes a little after what it tells of; Close waits until the last has been
// given.  So it may do what it likes, but not close the machine or the pool.  While
// it is slow lines are dropped rather than guests held up, and a line says how many.
type LogFunc func(level LogLevel, line string)

// Slog makes a LogFunc of a logger.
func Slog(l *slog.Logger) LogFunc {
	return func(level LogLevel, line string) {
		l.Log(context.Background(), level.slog(), line)
	}
}

type logLine struct {
	level LogLevel
	text  string
}

// logger is a LogFunc as the library knows it: an id, by which the one goroutine
// that reads all lines finds it (shim.c).
type logger struct {
	id    uint64
	users int
	lines chan logLine
	lost  uint32
	done  chan struct{}
}

var loggers struct {
	sync.Mutex
	once sync.Once
	err  error
	last uint64
	byID map[uint64]*logger
}

// newLogger gives the logger of f, with one user; nil if f is.
func newLogger(f LogFunc) (*logger, error) {
	if f == nil {
		return nil, nil
	}
	loggers.once.Do(func() {
		fd := int(C.vmmgo_log_open())
		if fd < 0 {
			loggers.err = os.NewSyscallError("socketpair", syscall.Errno(-fd))
			return
		}
		loggers.byID = make(map[uint64]*logger)
		_ = syscall.SetNonblock(fd, true) // or each read takes a thread
		go readLogs(os.NewFile(uintptr(fd), "logs"))
	})
	if loggers.err != nil {
		return nil, loggers.err
	}
	l := &logger{users: 1, lines: make(chan logLine, 256), done: make(chan struct{})}
	loggers.Lock()
	loggers.last++
	l.id = loggers.last
	loggers.byID[l.id] = l
	loggers.Unlock()
	go func() {
		for line := range l.lines {
			f(line.level, line.text)
		}
		close(l.done)
	}()
	return l, nil
}

func (l *logger) use() *logger {
	if l != nil {
		loggers.Lock()
		l.users++
		loggers.Unlock()
	}
	return l
}

// drop ends one use, and with the last one waits until every line has been given.
func (l *logger) drop() {
	if l == nil {
		return
	}
	loggers.Lock()
	l.users--
	last := l.users == 0
	loggers.Unlock()
	if last {
		C.vmmgo_log_end(C.uint64_t(l.id))
		<-l.done
	}
}

func readLogs(f *os.File) {
	var line C.struct_vmmgo_line
	const head = unsafe.Offsetof(line.text)
	buf := unsafe.Slice((*byte)(unsafe.Pointer(&line)), unsafe.Sizeof(line))
	for {
		n, err := f.Read(buf)
		if err != nil {
			return
		}
		if n < int(head) {
			continue
		}
		loggers.Lock()
		l := loggers.byID[uint64(line.id)]
		if line.level < 0 {
			delete(loggers.byID, uint64(line.id))
		}
		loggers.Unlock()
		switch {
		case l == nil:
		case line.level < 0:
			close(l.lines)
		default:
			l.lost += uint32(line.lost)
			l.put(logLine{LogLevel(line.level), string(buf[head:n])})
		}
	}
}

// put hands a line on, if there is room for it.  Called by readLogs only.
func (l *logger) put(line logLine) {
	if l.lost > 0 {
		select {
		case l.lines <- logLine{LogWarn, fmt.Sprintf("%d lines of the log were lost", l.lost)}:
			l.lost = 0
		default:
		}
	}
	select {
	case l.lines <- line:
	default:
		l.lost++
	}
}
