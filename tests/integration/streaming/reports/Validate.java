import ca.uhn.fhir.context.FhirContext;
import ca.uhn.fhir.context.support.DefaultProfileValidationSupport;
import ca.uhn.fhir.validation.*;
import org.hl7.fhir.common.hapi.validation.support.*;
import org.hl7.fhir.common.hapi.validation.validator.FhirInstanceValidator;
import java.nio.file.*;

/** Validates each line of the files that are named, a FHIR R4 resource each; prints what is wrong and how many are valid. */
public class Validate {
    public static void main(String[] files) throws Exception {
        FhirContext context = FhirContext.forR4();
        ValidationSupportChain chain = new ValidationSupportChain(
            new DefaultProfileValidationSupport(context),
            new CommonCodeSystemsTerminologyService(context),
            new InMemoryTerminologyServerValidationSupport(context));
        FhirValidator validator = context.newValidator();
        validator.registerValidatorModule(new FhirInstanceValidator(chain));
        int valid = 0;
        for (String file : files) {
            for (String line : Files.readAllLines(Path.of(file))) {
                ValidationResult result = validator.validateWithResult(line);
                for (SingleValidationMessage one : result.getMessages()) {
                    System.out.println(one.getSeverity() + " " + one.getLocationString() + " " + one.getMessage());
                }
                if (result.isSuccessful()) valid++;
            }
        }
        System.out.println("valid " + valid);
    }
}
