#include "core/files/net_table.h"

#include <sys/socket.h>

#include <sstream>

#include "core/base/error.h"
#include "core/base/proc_values.h"

namespace migrate {

NetTableLine parse_net_table_line(std::string_view line, int family) {
  constexpr const char* kWhere = "/proc/net";
  constexpr size_t kWord = 8;  // an address is printed as words of 32 bits in the host's order
  const size_t digits = family == AF_INET ? kWord : 4 * kWord;
  std::istringstream words{std::string(line)};
  std::string slot, local, remote, state, queue, timer, retries, uid, timeout, inode;
  words >> slot >> local >> remote >> state >> queue >> timer >> retries >> uid >> timeout >> inode;
  if (!words || local.size() < digits + 2 || local[digits] != ':') throw Corrupt(kWhere, "a line of another kind");
  NetTableLine out;
  for (size_t i = 0; i < digits; i += kWord) {
    const auto word = parse_number<uint32_t>(std::string_view(local).substr(i, kWord), kWhere, 16);
    out.address.append(reinterpret_cast<const char*>(&word), sizeof word);
  }
  const auto port = parse_number<uint32_t>(std::string_view(local).substr(digits + 1), kWhere, 16);
  const auto number = parse_number<uint32_t>(state, kWhere, 16);
  if (port > UINT16_MAX || number > UINT8_MAX) throw Corrupt(kWhere, "a number is out of range");
  out.port = static_cast<uint16_t>(port);
  out.state = static_cast<uint8_t>(number);
  out.inode = parse_number(inode, kWhere);
  return out;
}

}  // namespace migrate
