// migrate check [--feature NAME]
#include <iostream>

#include "core/base/features.h"
#include "core/memory/mapping_reader.h"
#include "migrate/cli/commands.h"

namespace migrate::cli {
namespace {

int check_one(const std::string& name, const std::vector<Feature>& features) {
  for (const Feature& f : features) {
    if (f.name != name) continue;
    std::cout << f.name << (f.present ? " is supported" : " is not supported: " + f.purpose) << "\n";
    return f.present ? 0 : 1;
  }
  std::cout << "Unknown feature " << name << "; known are:";
  for (const Feature& f : features) std::cout << " " << f.name;
  std::cout << "\n";
  return 1;
}

}  // namespace

int run_check(const CoreOptions& o) {
  std::vector<Feature> features = probe_features();
  features.push_back({"vma_iterator", false, MappingReader::best().is_quick(),
                      "reading the flags of mappings without walking page tables; needs Linux 6.1 with "
                      "CONFIG_DEBUG_INFO_BTF, CAP_BPF and CAP_PERFMON"});
  if (o.feature == "list") {
    for (const Feature& f : features) std::cout << f.name << "\n";
    return 0;
  }
  if (!o.feature.empty()) return check_one(o.feature, features);
  bool good = true;
  for (const std::string& capability : missing_capabilities()) {
    std::cout << "Missing: " << capability << "; run as root or with this capability\n";
    good = false;
  }
  for (const Feature& f : features) {
    if (f.present) continue;
    if (f.required || o.all)
      std::cout << (f.required ? "Missing: " : "Not present: ") << f.name << ": " << f.purpose << "\n";
    good = good && !f.required;
  }
  if (good) std::cout << "Looks good.\n";
  return good ? 0 : 1;
}

}  // namespace migrate::cli
