// What a terminal is set to: modes, size, lock and the like (ioctl_tty(2)). In a file of its own, since the kernel's
// struct termios2 and the C library's struct termios cannot be had in one.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "core/base/fd.h"
#include "core/base/proc_values.h"
#include "images/tty.pb.h"

namespace migrate {

/// Of a master. Throws Error.
uint32_t index_of_master(int fd, const std::string& who);
/// "/dev/pts/INDEX"
std::string slave_path(uint32_t index);
/// All files of it were taken away from it: its master is closed, or vhangup(2) was called.
bool is_hung_up(int fd);
/// The slave that is meant by a /dev/tty; nullopt: it is no pseudo-terminal.
std::optional<uint32_t> index_behind(int fd);
/// Why its line discipline or its state cannot be carried, in words that go behind its name; empty: it can.
std::string what_is_odd(int fd);

/// Modes, size, lock and exclusive use. Of a master also packet mode; its modes are those of its slave.
void describe_terminal(int fd, bool master, img::tty_info_entry& out);
/// Throws Corrupt for what no terminal has.
void check_terminal(const img::tty_info_entry& entry);
/// Modes and size, through the master.
void set_modes(int master, const img::tty_info_entry& entry, const std::string& who);
/// Packet mode, exclusive use and the lock, when all slaves have been opened.
void set_switches(int master, const img::tty_info_entry& entry, const std::string& who);
void set_exclusive(int fd, const std::string& who);

/// One more description of the slave, never a controlling terminal. `flags`: of open(2).
Fd open_slave(int master, int flags, const std::string& who);
void lock_slave(int master, bool locked, const std::string& who);

}  // namespace migrate
