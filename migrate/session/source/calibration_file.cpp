#include "migrate/session/source/calibration_file.h"

#include <unistd.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "core/base/fd.h"

namespace migrate {
namespace {

using Json = nlohmann::json;

constexpr size_t kMostPeers = 100;
constexpr size_t kMostBytes = 256 << 10;

std::string path_in(const std::string& state_dir) { return state_dir + "/calibration.json"; }

/// An object, whatever the file holds.
Json read_all(const std::string& state_dir) {
  try {
    Json all = Json::parse(read_file_at(AT_FDCWD, path_in(state_dir), kMostBytes), nullptr, false);
    if (all.is_object()) return all;
  } catch (const Error&) {  // not there yet
  }
  return Json::object();
}

double factor(const Json& entry, const char* name) {
  const auto found = entry.find(name);
  return found != entry.end() && found->is_number() ? found->get<double>() : 1;
}

FixedCost cost_in(const Json& entry) {
  return {factor(entry, "freeze"), factor(entry, "images"), factor(entry, "finish"), factor(entry, "handover"),
          factor(entry, "run_on")};
}

Json json_of(const FixedCost& f) {
  return {
      {"freeze", f.freeze}, {"images", f.images}, {"finish", f.finish}, {"handover", f.handover}, {"run_on", f.run_on}};
}

/// Drops the peers that were written longest ago; `move` counts all moves and so tells their age.
void forget_old(Json& all) {
  while (all.size() > kMostPeers) {
    auto oldest = all.begin();
    for (auto each = all.begin(); each != all.end(); ++each) {
      const auto age = [](const Json& entry) { return entry.is_object() ? factor(entry, "move") : -1; };
      if (age(*each) < age(*oldest)) oldest = each;
    }
    all.erase(oldest);
  }
}

double newest(const Json& all) {
  double most = 0;
  for (const auto& entry : all) {
    if (entry.is_object()) most = std::max(most, factor(entry, "move"));
  }
  return most;
}

}  // namespace

Calibration load_calibration(const std::string& state_dir, const std::string& peer) {
  Calibration calibration;
  const Json all = read_all(state_dir);
  const auto entry = all.find(peer);
  if (entry == all.end() || !entry->is_object()) return calibration;
  const FixedCost factors = cost_in(*entry);
  const auto newest = entry->find("newest");
  calibration.set(factors, newest != entry->end() && newest->is_object() ? cost_in(*newest) : factors);
  return calibration;
}

void save_calibration(const std::string& state_dir, const std::string& peer, const Calibration& calibration) {
  try {
    Json all = read_all(state_dir);
    Json entry = json_of(calibration.factors());
    entry["newest"] = json_of(calibration.newest());
    entry["move"] = newest(all) + 1;
    all[peer] = std::move(entry);
    forget_old(all);
    const std::string path = path_in(state_dir), fresh = path + "." + std::to_string(::getpid());
    {
      const Fd file = open_path(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW, 0600);
      write_full(file.get(), as_bytes_of(all.dump(1, ' ', false, Json::error_handler_t::replace)), fresh);
    }
    if (::rename(fresh.c_str(), path.c_str()) != 0) ::unlink(fresh.c_str());
  } catch (const Error&) {  // the next estimate is a little worse
  }
}

}  // namespace migrate
