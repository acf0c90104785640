#include "core/files/terminal.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <set>

#include "core/base/error.h"
#include "core/files/paths.h"

namespace migrate {

bool CommandTerminal::named_by(const img::reg_file_entry& entry) {
  if ((entry.mode() & S_IFMT) != S_IFCHR) return false;
  for (const char* prefix : {"/dev/pts/", "/dev/tty", "/dev/console"})
    if (entry.name().starts_with(prefix)) return true;
  return false;
}

void check_one_terminal(const std::map<uint32_t, img::file_entry>& entries) {
  std::string first;
  std::set<uint32_t> own;  // paths of pseudo-terminals that come along
  for (const auto& [id, entry] : entries)
    if (entry.type() == img::fd_types::TTY) own.insert(entry.tty().regf_id());
  for (const auto& [id, entry] : entries) {
    if (own.contains(id) || entry.type() != img::fd_types::REG || !CommandTerminal::named_by(entry.reg())) continue;
    const std::string& name = entry.reg().name();
    // That one means whatever terminal the session has.
    if (name == "/dev/tty") continue;
    if (!first.empty() && first != name)
      throw Refusal("the program has two terminals open, " + first + " and " + name, "redirect one of them to a file");
    first = name;
  }
}

Fd CommandTerminal::open(const img::reg_file_entry& entry, int flags) {
  const std::string& name = entry.name();
  if (!fd_)
    throw Refusal("the images hold the terminal " + name + ", and there is none to take its place",
                  "restore in a terminal with --shell-job, or redirect the program before it is dumped");
  return reopen(fd_.get(), flags | O_NOCTTY, name);
}

}  // namespace migrate
